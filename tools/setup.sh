# Sourced by tools/demo, tools/test and the other scripts: installs what is missing on Debian 12 (or a relative) and builds.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build_packages=(build-essential cmake ninja-build libeigen3-dev libhdf5-dev libcli11-dev libfmt-dev libssl-dev zlib1g-dev nlohmann-json3-dev)

say() { printf '\n== %s\n' "$*"; }

# install_packages PACKAGE...: those that are not there yet, through apt, as root or through sudo.
install_packages() {
  local missing=() as_root=()
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if ! command -v apt-get >/dev/null; then
    echo "laprox: this script installs with apt-get, which is not here. Install yourself: ${missing[*]}" >&2
    return 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "laprox: run this as root, or install yourself: ${missing[*]}" >&2; return 1; }
    as_root=(sudo)
  fi
  say "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# install_python ENVIRONMENT UPGRADE ARGUMENT...: what pip install takes, into a virtual environment, with the newest UPGRADE ('': as
# it is). By uv, which takes half of pip's time; uv reads no configuration of pip, so where it fails pip tries. It is told that laprox
# may have changed.
install_python() {
  local python=$1/bin/python upgrade=$2
  shift 2
  "$python" -m pip install --quiet --disable-pip-version-check uv &&
    "$python" -m uv pip install --quiet --no-cache --python "$python" ${upgrade:+--upgrade-package "$upgrade"} \
      --reinstall-package laprox --reinstall-package laprox-dump "$@" && return
  "$python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
    ${upgrade:+--upgrade --upgrade-strategy only-if-needed} "$@"
}

# usage_of SCRIPT ARGUMENT...: prints the comment at the script's head for --help, and refuses a first argument that is an option.
usage_of() {
  local script=$1 argument
  shift
  for argument in "$@"; do
    case $argument in
      -h | --help) sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$script"; exit 0 ;;
    esac
  done
  case ${1:-} in
    -*) printf '%s: unknown option %s; --help says what there is\n' "$script" "$1" >&2; exit 2 ;;
  esac
}

# build PRESET [CMAKE OPTION...]: configures and builds. Progress is one line on a terminal and a line every ten seconds elsewhere;
# the compiler's output is shown only where it fails.
build() {
  local preset=$1 log
  shift
  log=$(mktemp)
  say "building (preset $preset)"
  if ! { cmake --preset "$preset" "$@" -S "$root" >"$log" 2>&1 && cmake --build "$root/build/$preset" 2>&1 | tee "$log" | show_progress; }; then
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

show_progress() {
  local line last=$SECONDS
  while IFS= read -r line; do
    case $line in \[*/*\]*) ;; *) continue ;; esac
    if [ -t 1 ]; then
      printf '\r\033[K%s' "${line%%]*}] compiled"
    elif ((SECONDS - last >= 10)); then
      last=$SECONDS
      printf '%s compiled\n' "${line%%]*}]"
    fi
  done
  [ -t 1 ] && printf '\r\033[K'
  return 0
}
