"""The control plane on Redis: its server processes, the connection to them, the tables, publish and subscribe.

`tables.py` alone knows the name of a key. Nothing here lies on the path of a call.
"""
