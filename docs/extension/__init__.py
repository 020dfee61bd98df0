"""What this site needs beyond Sphinx: pages made of files of the repository, the gallery, docstrings, checked links."""
