"""The site's figures, each drawn by a file of its own, with numbers from handgrad."""
