#!/usr/bin/env bash
# Builds the TensorRT engines of a Jetson from ONNX graphs, with trtexec, and writes models.yaml for its inference server.
set -euo pipefail
umask 022 # the server reads what is built here as another user

program=build_engines.sh
known_models=(mobilenet resnet50 efficientnet vgg16)
newest_tensorrt=10
part='' # what is being written
trap '[[ -z $part ]] || rm -f -- "$part"' EXIT
log_lines_shown=8
least_free_kb=1024

usage() {
  cat <<'HELP'
build_engines.sh --onnx DIR --engines DIR [--workspace-mb 256] [--models a,b] [--gpu NAME] [--force]

Builds an FP16 engine from each <model>.onnx in a directory, on the Jetson that will run it, and writes models.yaml beside the
engines. An engine is good for one TensorRT and one kind of GPU: its file is named
<model>_trt<version>_<gpu>_<first 12 digits of the ONNX file's SHA-256>.engine and is built only if it is not there yet.

  --onnx DIR          the graphs, as docker/models/export_onnx.py writes them
  --engines DIR       where engines, logs (<engine>.log) and models.yaml go; on a node /opt/edge-models
  --workspace-mb N    what a layer may use while it runs and is being timed (256)
  --models a,b        build these only; engines of others that are there already stay in models.yaml
  --gpu NAME          for the file names; default: the board's model in /proc/device-tree, which a container may not see
  --force             build again what is there already

Environment: TRTEXEC (/usr/src/tensorrt/bin/trtexec), DEVICE_TREE_MODEL (/proc/device-tree/model).

TensorRT 8 to 10 can do this. TensorRT 11 has no --fp16: there the precision is that of the graph, and these graphs are float32.

Building takes minutes per model, and memory: VGG16 needs more than the 4 GB of a Jetson Nano. Add swap first, and stop the
inference server of this node meanwhile:
  sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile

Tested with a script in place of trtexec, not on a board.

Exit status: 0 done, 1 something was not built (the rest was, and models.yaml says which), 2 bad usage.
HELP
}

fail() {
  echo "$program: $1" >&2
  exit "${2:-1}"
}

value_of() {
  [[ $# -ge 2 && -n $2 ]] || fail "$1: expected a value (--help tells)" 2
  echo "$2"
}

read_options() {
  onnx_dir='' engines_dir='' workspace_mb=256 wanted='' gpu='' force=no
  while (($#)); do
    case $1 in
      --onnx) onnx_dir=$(value_of "$@") ;;
      --engines) engines_dir=$(value_of "$@") ;;
      --workspace-mb) workspace_mb=$(value_of "$@") ;;
      --models) wanted=$(value_of "$@") ;;
      --gpu) gpu=$(value_of "$@") ;;
      --force) force=yes ;;
      -h | --help) usage && exit 0 ;;
      *) fail "unknown option $1 (--help tells)" 2 ;;
    esac
    [[ $1 == --force ]] || shift
    shift
  done
  [[ -n $onnx_dir ]] || fail '--onnx: expected the directory of the ONNX graphs' 2
  [[ -n $engines_dir ]] || fail '--engines: expected the directory for the engines' 2
  [[ $workspace_mb =~ ^[1-9][0-9]{0,5}$ ]] || fail "--workspace-mb: expected MB from 1 to 999999, got $workspace_mb" 2
}

# Sets `models`: the names with a graph. All of them go into models.yaml; those in `selected` are built.
find_models() {
  [[ -d $onnx_dir ]] || fail "$onnx_dir is no directory: make the graphs with docker/models/export_onnx.py"
  models=() selected=()
  local path name
  for path in "$onnx_dir"/*.onnx; do
    [[ -e $path ]] || fail "no .onnx file in $onnx_dir: make the graphs with docker/models/export_onnx.py"
    name=${path##*/}
    name=${name%.onnx}
    [[ $name =~ ^[A-Za-z0-9_-]+$ ]] || fail "$path: expected only letters, digits, _ and - in a model's name"
    models+=("$name")
  done
  if [[ -z $wanted ]]; then
    selected=("${models[@]}")
    return
  fi
  IFS=, read -r -a selected <<<"$wanted"
  for name in "${selected[@]}"; do
    is_in "$name" "${models[@]}" || fail "--models: no $onnx_dir/$name.onnx" 2
  done
}

is_in() {
  local wanted_item=$1 item
  shift
  for item in "$@"; do
    [[ $item != "$wanted_item" ]] || return 0
  done
  return 1
}

# trtexec begins with "&&&& RUNNING TensorRT.trtexec [TensorRT v8201]": major, two digits each for minor and patch, 8.2.1.
# Before 10 the minor version has one digit there.
find_tensorrt_version() {
  trtexec=${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}
  [[ -x $trtexec ]] || fail "no trtexec at $trtexec: install libnvinfer-bin (JetPack) or set TRTEXEC"
  local banner number
  banner=$("$trtexec" --help 2>&1 || true)
  if [[ $banner =~ \[TensorRT\ v([0-9]{4}|[0-9]{6})\] ]]; then
    number=${BASH_REMATCH[1]}
    local head=${number:0:${#number}-2}
    if ((${#number} == 4)); then
      version=${head:0:1}.${head:1}.$((10#${number: -2}))
    else
      version=${head:0:${#head}-2}.$((10#${head: -2})).$((10#${number: -2}))
    fi
  else
    fail "$trtexec does not say which TensorRT it is of: expected [TensorRT v8201] or the like, got ${banner:0:80}"
  fi
}

# Without --fp16 an engine would be float32 and still be called what the others are.
require_fp16_option() {
  if ((${version%%.*} > newest_tensorrt)); then
    fail "$trtexec is of TensorRT $version, expected 8 to $newest_tensorrt: later ones build no FP16 engine from a float32 graph (no --fp16)"
  fi
}

find_gpu() {
  local file=${DEVICE_TREE_MODEL:-/proc/device-tree/model}
  if [[ -z $gpu && -r $file ]]; then
    gpu=$(tr -d '\0' <"$file")
  fi
  gpu=$(tr '[:upper:]' '[:lower:]' <<<"$gpu" | tr -cs 'a-z0-9\n' '-')
  gpu=${gpu#-}
  gpu=${gpu%-}
  [[ -n $gpu ]] || fail "cannot tell which board this is from $file: say so, as in --gpu jetson-nano" 2
}

sha256_of() {
  local sum
  sum=$(sha256sum -- "$1") || fail "cannot read $1"
  echo "${sum:0:64}"
}

# Sets `engine_of`: the file name of each model's engine.
name_engines() {
  declare -gA engine_of=()
  local model sum
  for model in "${models[@]}"; do
    sum=$(sha256_of "$onnx_dir/$model.onnx")
    engine_of[$model]=${model}_trt${version}_${gpu}_${sum:0:12}.engine
  done
}

# Builds one engine under a temporary name, or says why not; false if it is not there then.
build() {
  local model=$1 name=${engine_of[$1]} status=0 began=$SECONDS log line
  part=$engines_dir/.$name.part
  log=$engines_dir/$name.log
  local limits=("--workspace=$workspace_mb" --buildOnly)
  if ((${version%%.*} >= 10)); then
    limits=("--memPoolSize=workspace:$workspace_mb" --skipInference)
  fi
  echo "$model: building $name (log: $log)"
  rm -f -- "$part"
  "$trtexec" "--onnx=$onnx_dir/$model.onnx" "--saveEngine=$part" --fp16 "${limits[@]}" >"$log" 2>&1 || status=$?
  if ((status == 0)) && [[ -s $part ]] && mv -f -- "$part" "$engines_dir/$name"; then
    echo "$model: built in $((SECONDS - began)) s"
    return 0
  fi
  rm -f -- "$part"
  tail -n "$log_lines_shown" -- "$log" | while read -r line || [[ -n $line ]]; do echo "$model: | $line"; done >&2
  echo "$program: $model: $(what_went_wrong "$status"); the whole log: $log" >&2
  return 1
}

what_went_wrong() {
  local free_kb
  free_kb=$(df -k --output=avail -- "$engines_dir" | tail -n 1 | tr -d ' ')
  if [[ $free_kb =~ ^[0-9]+$ ]] && ((free_kb < least_free_kb)); then
    echo "the disk is full, $free_kb kB are free in $engines_dir"
  elif (($1 == 137)); then
    echo 'trtexec was killed, most likely for want of memory: add swap, or a smaller --workspace-mb (--help tells)'
  elif (($1 == 0)); then
    echo 'trtexec wrote no engine'
  else
    echo "trtexec failed with status $1"
  fi
}

quoted() {
  local text=${1//\\/\\\\}
  echo "\"${text//\"/\\\"}\""
}

manifest() {
  local model name sum
  echo 'models:'
  for model in "${models[@]}"; do
    name=${engine_of[$model]}
    if [[ -s $engines_dir/$name ]]; then
      sum=$(sha256_of "$engines_dir/$name") || return 1
      echo "  $model: {file: $(quoted "$name"), input_type: float32, sha256: \"$sum\"}"
    else
      echo "  $model: {absent: $(quoted "build_engines.sh has not built $name")}"
    fi
  done
  for model in "${known_models[@]}"; do
    is_in "$model" "${models[@]}" || echo "  $model: {absent: $(quoted "there was no $model.onnx for build_engines.sh")}"
  done
}

write_manifest() {
  part=$engines_dir/.models.yaml.part
  if ! { manifest >"$part" && mv -f -- "$part" "$engines_dir/models.yaml"; }; then
    fail "cannot write $engines_dir/models.yaml"
  fi
  echo "written: $engines_dir/models.yaml"
}

main() {
  read_options "$@"
  find_models
  find_tensorrt_version
  require_fp16_option
  find_gpu
  mkdir -p -- "$engines_dir" 2>/dev/null || fail "cannot make $engines_dir"
  [[ -w $engines_dir ]] || fail "cannot write into $engines_dir"
  echo "TensorRT $version, $gpu"
  name_engines
  local model failed=()
  for model in "${selected[@]}"; do
    if [[ $force == no && -s $engines_dir/${engine_of[$model]} ]]; then
      echo "$model: ${engine_of[$model]} is there already"
    else
      build "$model" || failed+=("$model")
    fi
  done
  write_manifest
  ((${#failed[@]} == 0)) || fail "not built: ${failed[*]}"
}

main "$@"
