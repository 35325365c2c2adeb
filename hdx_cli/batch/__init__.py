"""Many photos at once: which photo goes where, what became of it, and processes or machines that do the work.

``photos`` finds and names, ``manifest`` remembers on disk, ``job`` is what is done for one photo, ``processes`` and
``on_ray`` do it many times, ``core`` joins them.
"""
