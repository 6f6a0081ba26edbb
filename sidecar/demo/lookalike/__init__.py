"""Packages with the names and the call stacks of real engines, and nothing inside.

This folder is put on a stand-in's PYTHONPATH, so `python -m sglang.launch_server` runs ours: its command line and its
stacks, as py-spy shows them, are what a person meets in a real pod.
"""
