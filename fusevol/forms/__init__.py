"""The forms in which programs say and are told what a volume is, the same on a command line, in REST and in Docker.

options   `KEY=VALUE` texts, and what they mean for a driver        labels   labels, said like that
objects   volumes and snapshots as JSON
"""
