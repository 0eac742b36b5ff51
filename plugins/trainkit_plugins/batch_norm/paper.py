"""The paper whose four changes to batch norm the plugins of this room are."""

CITATION = """\
@inproceedings{summers2020four,
  title={Four Things Everyone Should Know to Improve Batch Normalization},
  author={Summers, Cecilia and Dinneen, Michael J.},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""
