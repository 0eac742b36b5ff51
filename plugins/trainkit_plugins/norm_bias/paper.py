"""The paper whose three experiments the plugins of this folder offer."""

CITATION = """\
@inproceedings{goldblum2020truth,
  title={Truth or Backpropaganda? An Empirical Investigation of Deep Learning Theory},
  author={Goldblum, Micah and Geiping, Jonas and Schwarzschild, Avi and Moeller, Michael
      and Goldstein, Tom},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""
