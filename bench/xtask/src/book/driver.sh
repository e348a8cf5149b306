# What runs the blocks of a page: each line of input names a kind, a script, a file for what it prints, and a port.
set -eu
children=()
finish() {
  trap - EXIT
  children+=($(jobs -p))
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  for child in "${children[@]}"; do
    for _ in $(seq 50); do kill -0 "$child" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$child" 2>/dev/null || true
  done
}
trap finish EXIT
[ "$1" = shared ] || ip link set lo up
shift
while read -r kind script out port; do
  case $kind in
    run) . "$script" > "$out" 2>&1 < /dev/null ;;
    retry) if ! bash -eu "$script" > "$out" 2>&1 < /dev/null; then echo failed; continue; fi ;;
    background)
      eval "exec $(grep -v '^#' "$script")" > "$out" 2>&1 < /dev/null &
      children+=($!)
      for turn in $(seq 100); do
        if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
        if [ "$turn" = 100 ] || ! kill -0 $! 2>/dev/null; then exit 1; fi
        sleep 0.1
      done ;;
  esac
  echo done
done
