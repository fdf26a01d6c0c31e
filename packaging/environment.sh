# shellcheck shell=sh
# The slow path of ./insula and ./test, sourced by them: make the Python environment for a lock file.
# They set $cache; make_environment sets $environment.

say() {
    printf 'insula: %s\n' "$*" >&2
}

# Say what went wrong and end: 125 where 1 could be taken for the guest's answer.
fail() {
    say "$@"
    exit "$failure"
}

# Read what the words on the command line mean for this file: $failure, $consent.
read_words() {
    failure=1 consent=${INSULA_YES:-}
    verb=
    for word in "$@"; do
        case $word in
            --) break ;;
            --yes) consent=1 ;;
            -*) ;;
            *) verb=${verb:-$word} ;;
        esac
    done
    case $verb in
        run | exec | shell) failure=125 ;;
    esac
}

# Set $python to the resolved path of a Python that is new enough, or to nothing.
find_python() {
    python=
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        command -v "$name" >/dev/null || continue
        python=$("$name" -I -c 'import os, sys
if sys.version_info >= (3, 11): print(os.path.realpath(sys.executable))' 2>/dev/null) || python=
        [ -z "$python" ] || return 0
    done
}

# Install Debian packages: $1 = why, the rest = their names. Root does it at once, others are asked and use sudo.
install_packages() {
    why=$1
    shift
    say "these Debian packages are missing: $*"
    say "$why"
    install="apt-get update -q && apt-get install -q --yes --no-install-recommends $*"
    command -v apt-get >/dev/null || fail "this is not Debian: install the same with this system's package manager"
    if [ "$(id -u)" = 0 ]; then
        set -- sh -c "$install"
    else
        command -v sudo >/dev/null || fail "run as root: $install"
        if [ -z "$consent" ]; then
            if [ ! -t 0 ] || [ ! -t 2 ]; then
                fail "run: sudo sh -c '$install'   (or repeat this command with --yes)"
            fi
            printf 'insula: install them now with sudo? [Y/n] ' >&2
            read -r answer || answer=n
            case $answer in
                [nN]*) fail "run: sudo sh -c '$install'" ;;
            esac
        fi
        set -- sudo sh -c "$install"
    fi
    DEBIAN_FRONTEND=noninteractive "$@" >&2 || fail "apt-get failed (its words are above)"
}

need_python() {
    find_python
    if [ -z "$python" ]; then
        install_packages "Insula is written in Python (3.11 or newer) and keeps its libraries in an environment of its own." \
            python3 python3-venv
        find_python
        [ -n "$python" ] || fail "Insula needs Python 3.11 or newer; this system has none"
    fi
    if ! "$python" -I -c 'import ensurepip, venv' 2>/dev/null; then
        install_packages "Insula keeps its Python libraries in an environment of its own." "${python##*/}-venv"
    fi
}

# Make the environment under a temporary name; what stands under its final name is always complete.
build_environment() {
    unfinished=${cache:?}/new-$$
    trap 'rm -rf -- "$unfinished"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    say "preparing the Python environment (once)"
    "$python" -I -m venv -- "$unfinished" >&2 || fail "python could not make an environment (its words are above)"
    "$unfinished/bin/python" -I -m pip --disable-pip-version-check --no-input --quiet install \
        --require-hashes --only-binary :all: --no-deps --requirement "$1" >&2 ||
        fail "pip could not fetch Insula's libraries (its words are above)"
    cp -- "$1" "$unfinished/requirements.lock"
    mv -T -- "$unfinished" "$environment"
    trap - EXIT INT TERM HUP
}

# Remove the environments nobody used for a month (their time is that of the last use, to the day) and nobody uses now.
prune_environments() {
    set -- /proc/[0-9]*/cmdline
    find "$cache" -maxdepth 1 -type d -name 'env-*' -mtime +30 ! -path "$environment" | while IFS= read -r old; do
        # By a pipe, so that grep does not find itself.
        printf '%s\n' "$old/" | grep -qsF -f - "$@" || rm -rf -- "$old"
    done
}

# make_environment LOCKFILE POINTER WORDS...: set $environment, remember it in the file POINTER of the cache.
make_environment() {
    lockfile=$1 pointer=$2
    shift 2
    read_words "$@"
    need_python
    mkdir -p -- "$cache" || fail "cannot write to $cache"
    key=$({ cat -- "$lockfile" && "$python" -I -VV && echo "$python" && uname -m; } | sha256sum) || fail "cannot read $lockfile"
    environment=$cache/env-$(printf %.20s "$key")
    # The kernel drops this lock when we end, however we end.
    exec 9>"$cache/lock"
    flock 9
    if [ ! -x "$environment/bin/python" ]; then
        rm -rf -- "$environment" "$cache"/new-*
        build_environment "$lockfile"
        prune_environments
    fi
    printf '%s\n' "$environment" >"$cache/.$pointer.$$"
    mv -T -- "$cache/.$pointer.$$" "$cache/$pointer"
    exec 9>&-
}
