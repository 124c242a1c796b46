"""``python -m ovms_kernel.aog``: plugin mode, for installs without the command line."""

from ovms_kernel.aog.serve import main

main()
