"""The paper, as its plugins cite it."""

CITATION = """\
@inproceedings{yi2020why,
  title={Why Not to Use Zero Imputation? Correcting Sparsity Bias in Training Neural Networks},
  author={Yi, Joonyoung and Lee, Juhyuk and Kim, Kwang Joon and Hwang, Sung Ju and Yang, Eunho},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""
