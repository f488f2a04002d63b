#!/usr/bin/env bash
# Carries files, wheels for a machine without a network say, in parts below a size limit.
#
#   benchmarks/parts.sh split FOLDER PARTS [MEGABYTES]   each file of FOLDER into PARTS (48 MB each)
#   benchmarks/parts.sh join PARTS FOLDER                and back, compared by sha256
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 1
}

split_files() {
  local from=$1 to=$2 megabytes=${3:-48}
  [[ -d $from ]] || fail "no such folder: $from"
  [[ $megabytes =~ ^[1-9][0-9]*$ ]] || fail "size is $megabytes, expected a number of megabytes"
  [[ ! -e $to ]] || fail "$to is there already"
  compgen -G "$from/*" >/dev/null || fail "$from holds no files"
  mkdir -p "$to"
  local file
  for file in "$from"/*; do
    [[ -f $file ]] || fail "$file is no file"
    split -b "${megabytes}M" -d -a 4 -- "$file" "$to/${file##*/}.part"
    # split makes nothing of an empty file.
    [[ -s $file ]] || : >"$to/${file##*/}.part0000"
  done
  (cd "$from" && sha256sum -- *) >"$to/SHA256SUMS"
}

join_files() {
  local from=$1 to=$2
  [[ -f $from/SHA256SUMS ]] || fail "$from holds no SHA256SUMS: it was not split by this script"
  mkdir -p "$to"
  local name
  while read -r _ name; do
    name=${name#\*}
    compgen -G "$from/$name.part*" >/dev/null || fail "$from lacks the parts of $name"
    cat -- "$from/$name".part* >"$to/$name"
  done <"$from/SHA256SUMS"
  (cd "$to" && sha256sum --quiet -c -) <"$from/SHA256SUMS" || fail "parts are damaged or missing"
}

case "${1:-}:$#" in
  split:3 | split:4) split_files "${@:2}" ;;
  join:3) join_files "${@:2}" ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
