"""Starts and stops processes: the per-run folder, tokens, titles, and what binds a child's life to its parent's.

Imported by the driver inside ray.init, so nothing here imports asyncio, subprocess, logging or shutil.
"""
