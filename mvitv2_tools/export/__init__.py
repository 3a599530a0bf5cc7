"""The command ``mvitv2 export``: a model as a file that runs without this project.

``subject`` says what is exported and which of its sizes are free, ``to_onnx`` and ``to_package``
write and run a route's file each, and ``command`` puts them together: a file appears under its name
once it ran and gave what the model gives.
"""
