"""``python -m ovms_face_aog [LAUNCHER]``: plugin mode, as ``ovms-plugin deploy`` has it started."""

import sys

from ovms_face_aog.serve import main

if __name__ == "__main__":
    main(*sys.argv[1:2])
