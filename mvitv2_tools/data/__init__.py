"""``mvitv2 data``: from a person's own data to a config that a trainer takes, and what is wrong.

``command`` has the command line. Each task reads, checks and writes: ``detection`` (coco_check,
coco_pair, coco_images, detection_config, augmented), ``video`` and ``images`` (labelled, splits,
video_check, image_check, slowfast_config), ``ava`` (boxes). ``findings`` says what was found,
``parallel`` looks at many files at once.
"""
