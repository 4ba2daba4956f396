"""supervision for the tests, or a skip: installed, or in the folders that DETOPS_SUPERVISION names."""

import os
import sys

import pytest

folders = os.environ.get("DETOPS_SUPERVISION", "").split(os.pathsep)
sys.path += [folder for folder in folders if folder and folder not in sys.path]  # behind what is installed
supervision = pytest.importorskip("supervision")
