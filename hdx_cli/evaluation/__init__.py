"""Comparing views of avatars with true views: scores, their means and intervals, tables and pictures.

``metrics`` and ``perceptual`` score pictures, ``lpips`` and ``inception`` do so with weights that the user brings,
``distributions`` compares sets of features, ``folders`` finds the pictures, ``protocol`` joins all that, ``tables``
shows it, and ``suite`` runs it over people whose avatars it makes.
"""
