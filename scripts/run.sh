#!/bin/bash
# Starts the all-in-one server and shows it work: a sample photo and a sample clip go in through the public API, the way any client
# would send them, and their results are downloaded. Then it keeps serving until Ctrl-C.
#
#   PORT=8080            the port to serve on
#   ENLARGER_DATA=data   where everything is kept; delete the folder to start afresh
#   DEMO=0               only serve
set -euo pipefail
cd "$(dirname "$0")/.."

port=${PORT:-8080}
data=${ENLARGER_DATA:-$PWD/data}
demo=$data/demo
base=http://localhost:$port
server=''

say() { printf '%s\n' "$*"; }
fail() {
	printf '\nrun: %s\n' "$*" >&2
	exit 1
}

[[ $port =~ ^[0-9]{1,5}$ && $port -ge 1 && $port -le 65535 ]] || fail "PORT=$port is no port number"
[ -x bin/enlarger ] || fail "bin/enlarger is not built; use \`make run\`"
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
	fail "port $port is in use. Stop what listens there, or choose another: PORT=8090 make run"
fi

# stop ends the server as an operator would, and waits: running jobs are handed back before it goes.
stop() {
	trap - EXIT
	if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
		kill -TERM "$server" 2>/dev/null || true
		wait "$server" 2>/dev/null || true
	fi
}
trap stop EXIT
trap 'say ""; say "Stopping ..."; stop; exit 0' INT TERM HUP

umask 077 # accounts, clients' files and the log are nobody else's
mkdir -p "$demo"
log=$data/server.log
export ENLARGER_DATA=$data
# Job control gives the server its own process group, so that Ctrl-C reaches this script alone and the server is asked to stop once.
set -m
ENLARGER_LISTEN=:$port bin/enlarger serve >"$log" 2>&1 &
server=$!
set +m

say "Starting enlarger on port $port (log: $log) ..."
for ((i = 0; ; i++)); do
	[ "$(curl -s -o /dev/null -m 2 -w '%{http_code}' "$base/healthz" || true)" = 200 ] && break
	kill -0 "$server" 2>/dev/null || { tail -n 20 "$log" >&2; fail "the server ended while starting; the end of its log is above"; }
	((i < 300)) || { tail -n 20 "$log" >&2; fail "the server did not answer $base/healthz within a minute; the end of its log is above"; }
	sleep 0.2
done

# get FIELD prints one top-level value of the JSON on standard input: enough for this API's flat answers.
get() {
	{ grep -oE "\"$1\" *: *(\"([^\"\\\\]|\\\\.)*\"|[^,}\" ]+)" || true; } | head -n 1 |
		sed -E 's/^"[^"]*" *: *//; s/^"(.*)"$/\1/; s/\\u0026/\&/g; s/\\u003d/=/g; s/\\\//\//g'
}

# api METHOD PATH [curl options] calls the API and prints its answer; an answer that is no success ends the script.
api() {
	local method=$1 path=$2 answer status
	shift 2
	answer=$(curl -sS -m 120 -X "$method" -H "Authorization: Bearer $key" -w '\n%{http_code}' "$@" "$base/api/v1$path") ||
		fail "$method $path: no answer"
	status=${answer##*$'\n'}
	answer=${answer%$'\n'*}
	[[ $status == 2* ]] || fail "$method $path answered $status: $answer"
	printf '%s\n' "$answer"
}

# follow JOB NAME shows a job's status, phase and progress until it ends.
follow() {
	local job=$1 name=$2 answer status phase progress line last=''
	for ((i = 0; i < 1500; i++)); do
		answer=$(api GET "/jobs/$job")
		status=$(get status <<<"$answer") phase=$(get phase <<<"$answer") progress=$(get progress <<<"$answer")
		[ "$phase" != null ] || phase=''
		line="  $name: $status${phase:+ / $phase} ${progress}%"
		[ "$line" = "$last" ] || say "$line"
		last=$line
		case $status in
		succeeded) return ;;
		failed | canceled) fail "the $name ended as $status: $answer" ;;
		esac
		sleep 0.2
	done
	fail "the $name did not end within five minutes; the log is $log"
}

# download JOB FILE follows the result's redirect to the signed link.
download() {
	curl -fsSL -m 300 -H "Authorization: Bearer $key" -o "$2" "$base/api/v1/jobs/$1/result" || fail "the result of $1 cannot be downloaded"
	[ -s "$2" ] || fail "the result of $1 is empty"
}

# size FILE prints WIDTHxHEIGHT.
size() { ffprobe -v error -select_streams v:0 -show_entries stream=width,height -of csv=s=x:p=0 "$1"; }

samples() {
	photo=fixtures/media/astronaut.png
	if [ ! -s "$photo" ]; then
		photo=$demo/photo.jpg
		ffmpeg -v error -nostdin -y -f lavfi -i testsrc2=size=640x480 -frames:v 1 -q:v 3 "$photo" || fail "ffmpeg could not draw the sample photo"
	fi
	clip=$demo/clip.mp4
	[ -s "$clip" ] || ffmpeg -v error -nostdin -y -f lavfi -i testsrc2=size=480x270:rate=24:duration=4 -f lavfi -i sine=frequency=440:duration=4 \
		-c:v libx264 -preset veryfast -pix_fmt yuv420p -c:a aac -shortest -movflags +faststart "$clip" || fail "ffmpeg could not make the sample clip"
}

demonstrate() {
	local job upload answer
	samples

	say ""
	say "A photo, $(size "$photo"), enlarged twice:"
	answer=$(api POST /jobs -F "image=@$photo" -F tool=upscale -F 'config={"scale":2}' -F output_format=jpg)
	job=$(get job_id <<<"$answer")
	follow "$job" photo
	download "$job" "$demo/photo-x2.jpg"
	say "  -> $demo/photo-x2.jpg, $(size "$demo/photo-x2.jpg")"

	say ""
	say "A clip, $(size "$clip"), enlarged twice (uploaded to a signed address first):"
	answer=$(api POST /uploads -H 'Content-Type: application/json' \
		-d "{\"file_name\":\"clip.mp4\",\"file_size\":$(stat -c %s "$clip"),\"content_type\":\"video/mp4\"}")
	upload=$(get upload_id <<<"$answer")
	curl -fsS -m 300 -o /dev/null -X PUT -H 'Content-Type: video/mp4' --upload-file "$clip" "$(get put_url <<<"$answer")" ||
		fail "the clip could not be uploaded"
	answer=$(api POST /jobs -H 'Content-Type: application/json' -d "{\"upload_id\":\"$upload\",\"tool\":\"video_upscale\",\"config\":{\"scale\":2}}")
	job=$(get job_id <<<"$answer")
	follow "$job" clip
	download "$job" "$demo/clip-x2.mp4"
	say "  -> $demo/clip-x2.mp4, $(size "$demo/clip-x2.mp4")"

	answer=$(api GET /credits)
	say ""
	say "Credits left: $(get balance <<<"$answer"), used: $(get used <<<"$answer"), frozen: $(get frozen <<<"$answer")"
}

account=$(bin/enlarger account create --name demo --credits 1000 --json | get id) || fail "no account could be made"
key=$(bin/enlarger key create --account "$account" --name demo --json | get key) || fail "no key could be made"
[ -n "$account" ] && [ -n "$key" ] || fail "the command line gave no account id or no key"

[ "${DEMO:-1}" = 0 ] || demonstrate

cat <<TEXT

enlarger is serving. Ctrl-C stops it; everything is kept in $data.

  Base URL   $base/api/v1
  API key    $key

  curl $base/api/v1/jobs \\
    -H "Authorization: Bearer $key" \\
    -F image=@photo.jpg -F tool=upscale -F 'config={"scale":2}' -F output_format=jpg
TEXT

code=0
wait "$server" || code=$?
server=''
tail -n 20 "$log" >&2
fail "the server ended by itself (exit $code); the end of its log is above"
