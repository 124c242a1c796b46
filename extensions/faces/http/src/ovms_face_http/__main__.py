"""``python -m ovms_face_http``: serve without the command line installed."""

import sys

from ovms_face_http.operation import run

if __name__ == "__main__":
    sys.exit(run())
