"""The root file system of a container: the host image, and the plan of mounts."""
