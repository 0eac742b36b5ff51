"""`python -m trainkit`, as torchrun starts it: `torchrun --nproc-per-node 2 -m trainkit train
…`.
"""

from trainkit.commands.app import main

main()
