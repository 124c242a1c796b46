"""The AOG face and its commands keep what every face and every command has to."""

from ovms_face_aog import AogFace
from ovms_face_aog.commands import Demo, Deploy, Manifest
from ovms_kernel.testing.contract import CommandsContract, FaceContract


class TestFace(FaceContract):
    driver = AogFace


class TestDemo(CommandsContract):
    driver = Demo


class TestDeploy(CommandsContract):
    driver = Deploy


class TestManifest(CommandsContract):
    driver = Manifest
