"""Names of the files in a records folder, and the version of their layout."""

FORMAT = "tfmuscle-records"
VERSION = 1
"""Version of the layout described in the package's docstring; a reader refuses any other."""
INDEX_FILE = "index.json"
SPEC_FILE = "spec.json"
DATASET_INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
REBUILD = "run build-records again"
"""What to do about damage, at the end of most messages."""
