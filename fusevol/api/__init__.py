"""The contracts of a volume driver."""
