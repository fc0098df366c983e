"""Devices and processes: the mesh, hosts, and stopping on a signal."""
