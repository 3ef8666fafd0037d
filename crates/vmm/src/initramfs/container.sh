# What the container's own files say, found without leaving them. Read by init.sh; only looks.
# NB_ROOT is where the container's root is for us.

# Sets at to where the container's path $1 is for us; rest, links, part and target change, too. Links are followed from the container's root, as the container
# would, so none leads out of it; what comes after something that isn't there is taken as it is.
inside() {
    rest=$1
    at=$NB_ROOT
    links=0
    while [ -n "$rest" ]; do
        part=${rest%%/*}
        case $rest in
        */*) rest=${rest#*/} ;;
        *) rest= ;;
        esac
        case $part in
        '' | .) continue ;;
        ..)
            [ "$at" = "$NB_ROOT" ] || at=${at%/*}
            continue
            ;;
        esac
        if ! [ -L "$at/$part" ]; then
            at=$at/$part
            continue
        fi
        # As many as Linux follows.
        links=$((links + 1))
        [ "$links" -le 40 ] || return 1
        target=$(readlink "$at/$part")
        case $target in
        /*) at=$NB_ROOT ;;
        esac
        rest=$target/$rest
    done
    return 0
}

# Whether all arguments are numbers.
are_numbers() {
    for word in "$@"; do
        case $word in
        '' | *[!0-9]*) return 1 ;;
        esac
    done
}

# Whether $1 is the name $2 or the number $3.
is_named() {
    [ "$1" = "$2" ] || { are_numbers "$1" && [ "$1" -eq "$3" ]; } 2>/dev/null
}

# Prints what the container has for /etc/hosts: the lines of file $1, if it is one, and what they leave out of localhost
# and the machine's name $2.
hosts() {
    four=
    six=
    own=
    set -f
    if [ -f "$1" ]; then
        while IFS= read -r line || [ -n "$line" ]; do
            printf '%s\n' "$line"
            address=
            for word in ${line%%#*}; do
                case $word:$address in
                localhost:*:*) six=$address ;;
                localhost:?*) four=$address ;;
                esac
                [ "$word" != "$2" ] || own=$address
                address=${address:-$word}
            done
        done <"$1"
    fi
    set +f
    [ -n "$four" ] || echo "127.0.0.1 localhost"
    [ -n "$six" ] || echo "::1 localhost ip6-localhost ip6-loopback"
    case $own:$2 in
    ?*:* | :localhost) ;;
    *.*) echo "127.0.0.1 $2 ${2%%.*}" ;;
    *) echo "127.0.0.1 $2" ;;
    esac
}

# Finds user $1 and group $2 (which may be empty), names or numbers, as Docker does: sets uid, gid, groups (the
# supplementary ones) and home. A number need not be known to the container; a group that is named is the only one.
# Fails if there is no such user or group; missing is then the sentence that says so.
find_user() {
    uid=
    gid=0
    groups=
    home=/
    user=
    if inside /etc/passwd && [ -f "$at" ]; then
        while IFS=: read -r entry _ number its_group _ its_home _ || [ -n "$entry" ]; do
            are_numbers "$number" "$its_group" || continue
            if is_named "$1" "$entry" "$number"; then
                user=$entry
                uid=$number
                gid=$its_group
                home=${its_home:-/}
                break
            fi
        done <"$at"
    fi
    if [ -z "$uid" ]; then
        uid=$1
        missing="the container's /etc/passwd has no user $1"
        are_numbers "$uid" || return 1
    fi
    named=
    if inside /etc/group && [ -f "$at" ]; then
        while IFS=: read -r entry _ number members || [ -n "$entry" ]; do
            are_numbers "$number" || continue
            if [ -n "$2" ]; then
                if is_named "$2" "$entry" "$number"; then
                    named=$number
                    break
                fi
            elif [ -n "$user" ]; then
                case ,$members, in
                *,"$user",*) groups="$groups $number" ;;
                esac
            fi
        done <"$at"
    fi
    if [ -n "$2" ]; then
        gid=${named:-$2}
        missing="the container's /etc/group has no group $2"
        are_numbers "$gid" || return 1
    fi
}

# Sets program to the path by which the container's PATH ($2) finds $1, with $3 as the directory it is in. Busybox has
# to be given a path: for a name that it knows itself, it runs itself, whatever the container has there.
find_program() {
    program=$1
    case $1 in
    */* | '') return ;;
    esac
    search=$2:
    while [ -n "$search" ]; do
        dir=${search%%:*}
        search=${search#*:}
        case $dir in
        /*) inside "$dir/$1" ;;
        *) inside "$3/$dir/$1" ;;
        esac || continue
        if [ -f "$at" ] && [ -x "$at" ]; then
            program=${dir:-.}/$1
            return
        fi
    done
    # It isn't there under this path either, and that is what will be said.
    if [ -e "/bin/$1" ]; then
        dir=${2%%:*}
        program=${dir:-.}/$1
    fi
}
