"""The command `askfirst`: the demo, and the switches of a running backend."""
