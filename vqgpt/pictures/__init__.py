"""Pictures of arrays of images: sheets, folders of files, panels, on a terminal."""
