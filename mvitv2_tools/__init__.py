"""What a person runs on files. Nothing of the other packages imports this one.

``data`` is the command ``mvitv2 data``: a person's own data, checked and made ready for a trainer.

``predict`` is the command ``mvitv2 predict``, in this order: ``find_model`` turns a name, a file
or a trainer's folder into a ``Classifier`` (classify.py) or a ``Detector`` (detect.py); ``inputs``
finds pictures and videos; ``feed`` prepares them in the background; ``report`` prints answers, and
``draw`` writes pictures.

``export`` is the command ``mvitv2 export``; it has ``predict``'s models and files of its own.
"""
