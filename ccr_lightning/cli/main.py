"""The command ``ccr``: answers ``--help`` and ``--version`` at once, and loads torch only for the work itself."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from ccr_lightning._version import __version__
from ccr_lightning.cli.processes import is_first_process
from ccr_lightning.cli.streams import output_error, prepare_streams, show_own_warnings
from ccr_lightning.cli.terminating import terminated_in_order
from ccr_lightning.errors import CCRError, Interrupted, SaidElsewhere, Stopped
from ccr_lightning.memory import explain_memory, is_out_of_memory

HELP = """\
ccr: cross-lingual cross-modal retrieval with 1-to-K contrastive learning.

usage: ccr COMMAND [options]

commands:
  fit         train a model, choose the best checkpoint on the validation split, test it
  validate    score a checkpoint on the validation split
  test        score a checkpoint on the test split, or on benchmarks: recall per language and direction, MRV
  predict     write the embeddings of the test split's images and captions
  convert     make a model of a checkpoint that the authors of CCR^k or CCLM published
  export      write a trained model into a folder to keep and to share
  embed       embed pictures once, into an index
  search      find pictures of an index, by captions in any language or by pictures
  serve       search an index on a local web page, in several languages side by side
  results     show the results of several runs side by side
  report      write a page on the results of runs: figures, and the images on which languages disagree
  data        check, preview, build, shard and translate captioned images, without a model
  doctor      what is installed, what the machine has, and what to do about what is wrong

start here:
  ccr fit --config configs/pretrain.yaml        train on the built-in pictures (about 8 minutes on 2 CPU cores)
  ccr test --ckpt_path runs/pretrain            score its best checkpoint again

'ccr COMMAND --help' explains a command; 'ccr --version' prints the version.
Set CCR_TRACEBACK=1 to see where an error comes from.
"""

_SETTINGS = """\
settings (in the config file, or on the command line, which wins):
  --data.batch_size 128                any setting of the data, the model or the trainer by its dotted name
  --model.objective english_pivot
  --trainer.max_epochs 5  --trainer.devices 2  --trainer.strategy ddp     (or fsdp2, which shards the parameters)
  --print_config                       print the whole configuration with all defaults, and stop
  --help_all                           list every setting with its explanation (takes some seconds)
"""

_TRAINED = """\
  --ckpt_path PATH      a checkpoint, or the folder of a run (its best checkpoint is used); its config.yaml is read too;
                        or a model: its folder, or its name on the hub, such as google/siglip2-base-patch16-224
  -c, --config PATH     changes to the run's configuration, such as other data; the whole of it, if the run has none
  --name NAME           results go to NAME/ beside the run (default: into the run's own folder; with a data.source that
                        is not the run's, into RUN-CONFIG/ beside it)
  --runs_dir DIR        results go to DIR/NAME/
"""

COMMAND_HELP = {
    "fit": f"""\
usage: ccr fit --config CONFIG [--init_from RUN] [--name NAME] [--resume auto|must|PATH] [settings]

Trains a model and writes everything to runs/NAME/: config.yaml, checkpoints/best.ckpt (chosen on the validation split)
and last.ckpt, metrics.csv, and, after testing the best checkpoint, results.json and ranks.csv.

options:
  -c, --config PATH     a configuration; several are merged, later ones win
  --init_from RUN       fine-tune: start from the weights of another run (its folder or a checkpoint), or of a model
                        (its folder, or its name on the hub, such as google/siglip2-base-patch16-224), with its model,
                        tokeniser and transform; see configs/finetune/ and docs/finetuning.md
  --name NAME           name of the run (default: the name of the config file, RUN-CONFIG with --init_from)
  --runs_dir DIR        where runs lie (default: runs)
  --resume auto         continue the run from its last checkpoint if it has one, start it otherwise
  --resume must         continue the run, or stop if it has no checkpoint
  --resume PATH         continue from this checkpoint
  --resume-changed      with --resume: go on although settings or data are not those of the run so far
  --seed_everything N   seed of everything random (default: 0)

{_SETTINGS}
examples:
  ccr fit --config configs/pretrain.yaml --name my-run --model.masked_lm_weight 0
  ccr fit --init_from runs/my-run --config configs/finetune/multi30k_en.yaml     (into runs/my-run-multi30k_en/)
""",
    "validate": f"""\
usage: ccr validate --ckpt_path PATH [settings]

Scores a checkpoint on the validation split; writes runs/NAME/results-val.json and ranks-val.csv.

options:
{_TRAINED}
{_SETTINGS}""",
    "test": f"""\
usage: ccr test --ckpt_path PATH [--config BENCHMARK | --benchmarks BENCHMARK...] [settings]

Scores a checkpoint on the test split: recall@1, 5, 10 per language and direction, MRV and MRSD, with 95 % intervals.
Prints a table and writes runs/NAME/results.json and ranks.csv, the rank of every query; with
--model.protocol.rerank_depth also results-reranked.json and ranks-reranked.csv. 'ccr report' makes a page of them, and
docs/evaluation.md defines every number.

options:
{_TRAINED}  --benchmarks PATH...  score several configurations, into RUN-CONFIG/ each, and show them in one table

{_SETTINGS}
examples:
  ccr test --ckpt_path runs/pretrain --model.protocol.rerank_depth 16     (also re-ranks the best 16 of each query)
  ccr test --ckpt_path runs/pretrain --config configs/test/xtd.yaml     (a benchmark; results in runs/pretrain-xtd/)
  ccr test --ckpt_path runs/pretrain --benchmarks configs/test/multi30k_*.yaml     (several)
""",
    "predict": f"""\
usage: ccr predict --ckpt_path PATH [settings]

Encodes the test split; writes runs/NAME/embeddings.safetensors (image_embeds, text_embeds and their ids) and
embeddings.json (the names that the ids stand for).

options:
{_TRAINED}
{_SETTINGS}
example:
  ccr predict --ckpt_path runs/pretrain --trainer.devices 1   (it runs on one device)
""",
}

# Commands without a trainer, a module each.
_OTHERS = ("convert", "data", "doctor", "embed", "export", "report", "results", "search", "serve")
SECONDS_FOR_THE_FIRST = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    Args:
        argv: The arguments without the program's name; by default those of the process.

    Example:
        >>> main(["--version"]) == 0
        ccr-lightning 0.1.0
        True
    """
    prepare_streams()
    show_own_warnings()
    with terminated_in_order():
        status = _main(list(sys.argv[1:] if argv is None else argv))
    lost = output_error()
    return _without_output(lost) if lost is not None and not status else status


def _main(args: list[str]) -> int:
    parent = os.getppid()
    try:
        return _dispatch(args)
    except (KeyboardInterrupt, Stopped) as error:  # during the imports; later the command itself says how to go on
        goes_on = {name: "; what is finished stays" for name in ("data", "embed")}
        goes_on |= {"fit": "; a run that has begun goes on with --resume auto"}
        if is_first_process():
            print(f"error: interrupted: start it again{goes_on.get(args[0], '')}.", file=sys.stderr)
        return 128 + (error.signum if isinstance(error, Stopped) else signal.SIGINT)
    except SaidElsewhere:
        return 1
    except Exception as error:
        if isinstance(error, OSError) and (lost := output_error()) is not None:
            return _without_output(lost)
        status = error.exit_status if isinstance(error, Interrupted) else 1
        if _first_process_speaks(parent):
            return status
        is_short = is_out_of_memory(error)  # of memory, wherever a command, or an import, has found that out
        if not isinstance(error, CCRError) and not is_short:
            raise
        print(f"error: {_out_of_memory(error, args[0]) if is_short else error}", file=sys.stderr)
        if os.environ.get("CCR_TRACEBACK"):
            raise
        return status


def _out_of_memory(error: Exception, command: str) -> str:
    return explain_memory(
        error, f"in ccr {command}", "give it more, or a smaller model, a smaller batch or fewer workers"
    )


def _without_output(lost: OSError) -> int:
    if isinstance(lost, BrokenPipeError):  # whoever read the output, head say, has seen enough
        return 141  # as a shell says of a program that the closed pipe ended
    print(f"error: standard output cannot be written ({lost.strerror}); send it elsewhere.", file=sys.stderr)
    return 1


def _first_process_speaks(parent: int) -> bool:
    """Whether this process of several may be silent, because its parent, the first one, has ended with an error too.

    Most errors are found by all processes; what the first one does not find within some seconds is this one's to say.
    Where torchrun or srun is the parent, it ends its processes within these seconds if the first one fails.
    """
    if is_first_process():
        return False
    deadline = time.monotonic() + SECONDS_FOR_THE_FIRST
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.1)
    return os.getppid() != parent


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] in ("-V", "--version"):
        print(f"ccr-lightning {__version__}")
        return 0
    command = args[0]
    try:
        os.getcwd()
    except OSError as error:
        raise CCRError(f"the working directory cannot be used ({error.strerror}); change to another one.") from error
    if command in _OTHERS:
        return int(import_module(f"ccr_lightning.cli.{command}").run(args[1:]))
    if command not in COMMAND_HELP:
        from difflib import get_close_matches

        close = get_close_matches(command, (*COMMAND_HELP, *_OTHERS), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "run 'ccr --help' for the list."
        raise CCRError(f"{command!r} is not a command: {hint}")
    if len(args) == 1 or any(arg in ("-h", "--help") for arg in args[1:]):
        print(COMMAND_HELP[command], end="")
        return 0
    from ccr_lightning.cli.arguments import is_given
    from ccr_lightning.cli.run_config import add_run_config, start_from_run

    if command == "test" and is_given(args, "--benchmarks"):
        from ccr_lightning.cli.benchmarks import run as run_benchmarks

        return run_benchmarks(args)
    args = start_from_run(args) if command == "fit" else add_run_config(args)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a broken connection one sentence tells, see watching.py
    from ccr_lightning.cli.training import run

    return run(["--help" if arg == "--help_all" else arg for arg in args])


if __name__ == "__main__":
    sys.exit(main())
