"""The version, for `ray.__version__`, the `ray` command and setup.py (which reads this file as text).

Libraries written for Ray's public API ask for "a recent 2.x", often as a requirement such as `>=2.9,<3`. The number
answers them: one above the newest release whose public API this project was compared with (2.60). It is no development
or local version, because `packaging` leaves those out of a requirement unless asked.
"""

__version__ = "2.61.0"
