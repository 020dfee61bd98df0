"""Lessons in a browser: what builds the JupyterLite site, see the guide of that name."""
