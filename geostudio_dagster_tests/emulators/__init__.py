"""Stand-ins for outside services: real servers on loopback that keep state and check input."""
