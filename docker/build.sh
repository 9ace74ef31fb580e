#!/usr/bin/env bash
# Builds the images of the inference servers and of the power agent and, with --push, pushes them. Digests and checksums of
# what comes from elsewhere are resolved once, recorded in images.lock beside this script and used from then on: what changed
# meanwhile is refused.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lock=$here/images.lock
placeholder=registry.example/edge

usage() {
  cat <<USAGE
usage: docker/build.sh [options]

  --registry R     images are named R/<kind>-inference-server and R/power-agent (default: \$REGISTRY, else $placeholder)
  --tag T          their tag (default: \$TAG, else the version in pyproject.toml)
  --push           push them; without it they stay in the local Docker
  --only KINDS     some of coral,jetson,hailo,power (default: all)
  --platform P     what to build for (default: linux/arm64, what all the boards are)
  --update         resolve digests and checksums anew and record them
  --help           this text

Environment, each remembered in images.lock until it is given again:
  LIBEDGETPU_URL   address of the libedgetpu package (the -max variant runs the stick at its full clock)
  TFLITE_WHEEL     address of the tflite-runtime wheel, of the same TensorFlow as libedgetpu; empty: the older one of PyPI
  PYCORAL_WHEEL    address of a pycoral wheel (default: empty, the server loads the Edge TPU delegate itself)
Environment, for the Jetson image only (its Dockerfile says more):
  BUILDER_IMAGE    image that compiles pycuda
  JETSON_PYTHON    interpreter that has TensorRT's module, where the image does not show it
USAGE
}

fail() {
  printf 'build.sh: %s\n' "$*" >&2
  exit 1
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

recorded() { # NAME: its value in images.lock; fails if there is none
  [[ -f $lock ]] && grep -q "^$1=" "$lock" && sed -n "s/^$1=//p" "$lock"
}

record() { # NAME VALUE: one line each, sorted
  {
    if [[ -f $lock ]]; then grep -v "^$1=" "$lock" || true; fi
    printf '%s=%s\n' "$1" "$2"
  } | LC_ALL=C sort >"$lock.new"
  mv "$lock.new" "$lock"
}

image_name() { # KIND
  case $1 in
    power) echo power-agent ;;
    *) echo "$1-inference-server" ;;
  esac
}

manifest() { # KIND: the file that names its image
  case $1 in
    power) echo monitoring/power-agent-daemonset.yaml ;;
    *) echo "yaml/$1_daemonset.yaml" ;;
  esac
}

dockerfile() { # KIND
  local name
  name=$(image_name "$1")
  printf '%s/%s/Dockerfile' "$here" "${name//-/_}"
}

argument_default() { # KIND NAME
  sed -n "s/^ARG $2=//p" "$(dockerfile "$1")" | head -n 1
}

base_image() { # KIND NAME: the image whose digest is the argument NAME
  sed -n "s/^FROM \([^@ ]*\)@\${$2}.*/\1/p" "$(dockerfile "$1")" | head -n 1
}

digest_of_image() { # IMAGE
  docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1" ||
    fail "cannot read the digest of $1: is the registry reachable, and does the tag still exist?"
}

checksum_of_address() { # ADDRESS
  curl -fsSL --retry 3 -o "$scratch/asset" "$1" || fail "cannot fetch $1. $(advice "$1")"
  checksum_of_file "$scratch/asset"
}

checksum_of_file() { sha256sum "$1" | cut -d ' ' -f 1; }

advice() { # ADDRESS: what to do when it is gone
  case $1 in
    *pycoral*) echo 'Give another wheel for Python 3.10 on aarch64 (PYCORAL_WHEEL=https://...), or leave pycoral out (PYCORAL_WHEEL= docker/build.sh).' ;;
    *tflite_runtime*) echo 'Give another wheel for Python 3.10 on aarch64, of the TensorFlow of LIBEDGETPU_URL (TFLITE_WHEEL=https://...), or take that of PyPI (TFLITE_WHEEL= docker/build.sh).' ;;
    *libedgetpu*) echo 'Give the address of another arm64 build for Ubuntu 22.04 (LIBEDGETPU_URL=https://...).' ;;
    *) echo 'Is the network up?' ;;
  esac
}

# Sets the build argument NAME to the recorded value, or to what RESOLVER says of SOURCE, which is then recorded with its source.
pin() { # NAME PATTERN SOURCE RESOLVER
  local name=$1 pattern=$2 source=$3 resolver=$4 value
  if ((!update)) && value=$(recorded "$name") && [[ $(recorded "${name}_SOURCE") == "$source" ]]; then
    [[ $value =~ ^$pattern$ ]] || fail "$lock: $name is '$value', expected ${pattern}; remove the line to have it resolved again"
  else
    value=$("$resolver" "$source")
    [[ $value =~ ^$pattern$ ]] || fail "$source: got '$value' as its digest, expected $pattern"
    record "$name" "$value"
    record "${name}_SOURCE" "$source"
    echo "resolved $name=$value ($source)"
  fi
  arguments+=(--build-arg "$name=$value")
}

pin_image() { # KIND NAME
  pin "$2" 'sha256:[0-9a-f]{64}' "$(base_image "$1" "$2")" digest_of_image
}

pin_address() { # NAME ADDRESS
  pin "$1" '[0-9a-f]{64}' "$2" checksum_of_address
}

# An address that the environment may replace; the choice is remembered.
chosen() { # KIND NAME
  local value
  if [[ -n ${!2+given} ]]; then
    value=${!2}
    record "$2" "$value"
  else
    value=$(recorded "$2") || value=$(argument_default "$1" "$2")
  fi
  printf '%s' "$value"
}

checksum_of_deb() { checksum_of_file "$here/hailo_inference_server/debs/$1"; }

pin_deb() { # NAME PACKAGE
  local name=$1 version found
  version=$(argument_default hailo HAILORT_VERSION)
  shopt -s nullglob
  found=("$here/hailo_inference_server/debs/${2}_$version"*_arm64.deb)
  shopt -u nullglob
  ((${#found[@]} == 1)) || fail "docker/hailo_inference_server/debs/ must hold one ${2}_$version*_arm64.deb, found ${#found[@]}. \
On a Raspberry Pi with Raspberry Pi OS Trixie: apt-get download hailort=$version python3-hailort=$version-1; copy both files there. \
Where apt offers h10-hailort only: step 5 of docs/hardware_setup.md. \
Without them: --only coral,jetson,power"
  local file=${found[0]##*/}
  pin "$name" '[0-9a-f]{64}' "$file" checksum_of_deb
  local now
  now=$(checksum_of_deb "$file")
  [[ $now == "$(recorded "$name")" ]] ||
    fail "$file has changed: its sha256 is $now, recorded is $(recorded "$name"). If that is meant: --update"
}

resolve_coral() {
  local address
  pin_image coral UBUNTU_DIGEST
  address=$(chosen coral LIBEDGETPU_URL)
  arguments+=(--build-arg "LIBEDGETPU_URL=$address")
  pin_address LIBEDGETPU_SHA256 "$address"
  local name
  for name in TFLITE PYCORAL; do
    address=$(chosen coral "${name}_WHEEL")
    arguments+=(--build-arg "${name}_WHEEL=$address")
    if [[ -n $address ]]; then pin_address "${name}_SHA256" "$address"; fi
  done
}

resolve_jetson() {
  pin_image jetson L4T_TENSORRT_DIGEST
  pin_address JETSON_KEY_SHA256 "$(argument_default jetson JETSON_KEY_URL)"
  if [[ -n ${BUILDER_IMAGE:-} ]]; then arguments+=(--build-arg "BUILDER_IMAGE=$BUILDER_IMAGE"); fi
  if [[ -n ${JETSON_PYTHON:-} ]]; then arguments+=(--build-arg "PYTHON=$JETSON_PYTHON"); fi
}

resolve_hailo() {
  pin_deb HAILORT_DEB_SHA256 hailort
  pin_deb PYTHON3_HAILORT_DEB_SHA256 python3-hailort
  pin_image hailo DEBIAN_DIGEST
}

resolve_power() { pin_image power DEBIAN_DIGEST; }

build() { # KIND BUILD-ARGUMENT...
  local kind=$1 image digest=
  image=$registry/$(image_name "$1"):$tag
  shift
  echo "building $image for $platform"
  docker buildx build --platform "$platform" --file "$(dockerfile "$kind")" --tag "$image" --provenance=false "$output" \
    --metadata-file "$scratch/$kind.json" --build-arg "VERSION=$tag" --build-arg "REVISION=$(revision)" "$@" "$here" ||
    fail "$image was not built; the reason stands above. A checksum that does not fit: what was fetched has changed since it was recorded in $lock"
  if [[ $output == --push ]]; then
    digest=$(sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "$scratch/$kind.json")
  fi
  built+=("$kind $image${digest:+@$digest}")
}

revision() {
  local commit
  commit=$(git -C "$here" rev-parse HEAD 2>/dev/null) || {
    echo unknown
    return
  }
  git -C "$here" diff --quiet HEAD -- . 2>/dev/null && echo "$commit" || echo "$commit-dirty"
}

check_docker() {
  command -v docker >/dev/null || fail 'docker was not found: install Docker Engine with buildx (https://docs.docker.com/engine/install/)'
  docker buildx version >/dev/null 2>&1 || fail 'docker has no buildx: install the package docker-buildx-plugin'
  local builder
  builder=$(docker buildx inspect --bootstrap 2>&1) || fail "the builder of docker buildx does not start: $builder"
  [[ $builder =~ Platforms:.*$platform ]] ||
    fail "this builder cannot build for $platform: install its emulation (docker run --privileged --rm tonistiigi/binfmt --install ${platform#linux/}), or build on a Raspberry Pi"
}

registry=${REGISTRY:-$placeholder}
tag=${TAG:-}
platform=linux/arm64
output=--load
kinds=coral,jetson,hailo,power
update=0
while (($#)); do
  case $1 in
    --registry | --tag | --only | --platform)
      (($# > 1)) || fail "$1 needs a value (--help)"
      case $1 in
        --registry) registry=$2 ;;
        --tag) tag=$2 ;;
        --only) kinds=$2 ;;
        --platform) platform=$2 ;;
      esac
      shift
      ;;
    --push) output=--push ;;
    --update) update=1 ;;
    --help)
      usage
      exit
      ;;
    *) fail "unknown option $1 (--help)" ;;
  esac
  shift
done

if [[ -z $tag ]]; then
  tag=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../pyproject.toml" 2>/dev/null || true)
  [[ -n $tag ]] || fail 'no version found in pyproject.toml: give --tag'
fi
[[ $output == --load || $registry != "$placeholder" ]] || fail "$placeholder is a placeholder: name your registry with --registry"
[[ -n $kinds ]] || fail '--only needs some of coral, jetson, hailo, power'
IFS=, read -r -a kinds <<<"$kinds"
for kind in "${kinds[@]}"; do
  [[ $kind =~ ^(coral|jetson|hailo|power)$ ]] || fail "--only: '$kind' is none of coral, jetson, hailo, power"
done
check_docker

# All is resolved before anything is built, so that what is missing shows at once.
built=()
for kind in "${kinds[@]}"; do
  arguments=()
  "resolve_$kind"
  printf '%s\n' "${arguments[@]}" >"$scratch/$kind.arguments"
done
for kind in "${kinds[@]}"; do
  mapfile -t arguments <"$scratch/$kind.arguments"
  build "$kind" "${arguments[@]}"
done

echo
echo "digests and checksums: $lock (commit it)"
for line in "${built[@]}"; do
  read -r kind image <<<"$line"
  echo "$kind: $image"
done
echo 'to have the manifests name these images:'
for line in "${built[@]}"; do
  read -r kind image <<<"$line"
  echo "  sed -i 's|image: .*/$(image_name "$kind")[:@].*|image: $image|' $(manifest "$kind")"
done
if [[ $output == --load ]]; then
  echo 'not pushed; without a registry, for each node of a kind (power: for each worker):'
  for line in "${built[@]}"; do
    read -r kind image <<<"$line"
    node=${kind}1
    [[ $kind != power ]] || node=coral1
    echo "  docker save $image | ssh $node 'cat > image.tar' && ssh -t $node 'sudo k3s ctr images import image.tar && rm image.tar'"
  done
fi
