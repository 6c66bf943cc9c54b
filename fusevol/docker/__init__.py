"""Docker: volumes for containers, by the volume plugin protocol.

dockerd ──POST /VolumeDriver.*──> app ──> volumes.DockerVolumes ──> driver
                                             │
                 counts per mount id (consumers), set right by what the engine says (counts)
"""
