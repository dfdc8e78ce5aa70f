#!/usr/bin/env bash
# The source archive holds what the wheel is built from, and the wheel stands by itself: in an environment that holds no
# extras, outside of the checkout, the commands answer, five steps of training leave a whole run folder, and every command
# works or names the extra that it needs (tools/every_command.py).
# usage: tools/wheel_check.sh PYTHON [ENVIRONMENT]     ENVIRONMENT: a folder that is not there yet, and is kept
set -euo pipefail

python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
environment=${2:-$work/environment}
test ! -e "$environment" || { echo "wheel check: $environment is there already; it must be an empty one"; exit 2; }
checkout=$(cd "$(dirname "$0")/.." && pwd)

"$python" -m venv "$environment"
environment=$(cd "$environment" && pwd)
"$environment/bin/python" -m pip install --quiet build
"$environment/bin/python" -m build --outdir "$work" "$checkout" > "$work/build.txt" 2>&1 || { cat "$work/build.txt"; exit 1; }
# Compiling what is installed takes a minute; what is imported is compiled then.
"$environment/bin/python" -m pip install --quiet --no-compile "$work"/depthjepa-*.whl

PATH=$environment/bin:$PATH
unset PYTHONPATH
cd "$work"

# Each of its commands waits for its own imports and small networks: beside it the other checks have a core.
echo "wheel check: every command works, or names the extra that it needs"
mkdir commands
(cd commands && exec python -P "$checkout/tools/every_command.py") &
every=$!
trap 'kill "$every" 2> /dev/null || true; rm -rf "$work"' EXIT

echo "wheel check: commands"
depthjepa --version
depthjepa --help > help.txt
depthjepa recipes > recipes.txt
grep -q train help.txt
grep -q demo recipes.txt

echo "wheel check: every module imports without extras"
python - <<'END'
import importlib, pathlib, pkgutil, sys
import depthjepa
assert pathlib.Path(depthjepa.__file__).is_relative_to(sys.prefix), f"{depthjepa.__file__} is not the wheel's"
for module in pkgutil.walk_packages(depthjepa.__path__, "depthjepa."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
END

echo "wheel check: five steps"
small=(train.steps=5 train.log_every=1 train.precision=fp32 evaluation.precision=fp32 data.scenes_train=64
    data.scenes_val=32 model.width=32 model.depth=2 model.heads=2 train.batch_size=8)
depthjepa train demo "${small[@]}" --out run
for file in config.yaml environment.json metrics.jsonl summary.json checkpoints/last.pt; do
    test -s "run/$file" || { echo "wheel check: the run folder has no $file"; exit 1; }
done
test "$(wc -l < run/metrics.jsonl)" -eq 5 || { echo "wheel check: metrics.jsonl has not five steps"; exit 1; }

wait "$every"
echo "wheel check: passed"
