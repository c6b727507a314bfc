# What the examples of the seeds take for granted: a dataset in the state that they begin with, and checks on what they
# leave behind. Sourced by `.before` and `.after` files. Prints nothing to standard output unless a check fails.

fail() {
    echo "FAILED: $*"
    exit 1
}

# check WORDS… : fails unless the command succeeds.
check() {
    "$@" || fail "$*"
}

# check_answer TEXT FILTER : TEXT is a body and a line with the status, as curl -w "\n%{http_code}" prints them.
check_answer() {
    local status=${1##*$'\n'}
    [[ $status == 2?? ]] || fail "status $status: $1"
    jq -e "$2" <<<"${1%$'\n'*}" >/dev/null || fail "$2 does not hold for: $1"
}

# api METHOD PATH [CURL ARGUMENTS…]
api() {
    curl -sS --fail-with-body -X "$1" -H "Authorization: Bearer ${NIMGATE_KEY}" -H "Content-Type: application/json" \
        "${NIMGATE_URL}$2" "${@:3}"
}

# Terminating jobs ends those of other tests too, so whoever needs jobs to run, or ends them, does it alone.
hold_jobs() {
    exec 9>"${JOBS_LOCK}"
    flock 9
}

make_zip() {
    head -c 65536 /dev/urandom >"clip.mp4" && zip -q "${1:-your-dataset.zip}" clip.mp4
}

# Sets DATASET_ID.
new_dataset() {
    local spec='{"pipeline": "split", "args": {"generate_captions": true}}'
    DATASET_ID=$(api POST /v1/cosmos/datasets -d "{\"name\": \"test\", \"description\": \"test\", \"jobSpec\": ${spec}}" |
        jq -er .id) || fail "no dataset"
}

# Sets FILE_ID and FILE_KEY as well.
initialized_dataset() {
    local upload
    new_dataset
    upload=$(api POST "/v1/cosmos/datasets/${DATASET_ID}/upload/initialize" -d '{}') || fail "no upload: $upload"
    FILE_ID=$(jq -er .fileId <<<"$upload") || fail "no fileId: $upload"
    FILE_KEY=$(jq -er .fileKey <<<"$upload") || fail "no fileKey: $upload"
}

# Uploads your-dataset.zip in one part; sets ETAG as well.
uploaded_dataset() {
    local url
    initialized_dataset
    make_zip
    url=$(api POST "/v1/cosmos/datasets/${DATASET_ID}/upload/getPreSignedUrls" \
        -d "{\"fileId\": \"${FILE_ID}\", \"fileKey\": \"${FILE_KEY}\", \"parts\": 1, \"expires\": 3600}" |
        jq -er '.parts[0].signedUrl') || fail "no presigned URL"
    ETAG=$(curl -sS -o /dev/null -D - -X PUT -T your-dataset.zip -H "Content-Type: application/zip" "$url" |
        sed -n 's/^etag: *"\{0,1\}\([^"\r]*\).*/\1/Ip')
    [ -n "$ETAG" ] || fail "no ETag"
}

# Sets PRESIGNED_URL as well.
finalized_dataset() {
    uploaded_dataset
    api POST "/v1/cosmos/datasets/${DATASET_ID}/upload/finalize" -o /dev/null \
        -d "{\"fileId\": \"${FILE_ID}\", \"fileKey\": \"${FILE_KEY}\", \"parts\": [{\"ETag\": \"${ETAG}\", \"PartNumber\": 1}]}" ||
        fail "not finalized"
    PRESIGNED_URL=$(api GET "/v1/cosmos/datasets/${DATASET_ID}/download/getPreSignedUrls?processed=false" |
        jq -er .url) || fail "no download URL"
}

processing_dataset() {
    finalized_dataset
    api POST "/v1/cosmos/datasets/${DATASET_ID}/process" -o /dev/null -d "{\"url\": \"${PRESIGNED_URL}\"}" ||
        fail "not processed"
}

dataset_status() {
    api GET "/v1/cosmos/datasets/$1" | jq -er .lastStatus.status
}

# await_status DATASET STATUS : until the dataset has it, at most 30 seconds.
await_status() {
    local status end=$((SECONDS + 30))
    until status=$(dataset_status "$1") && [ "$status" = "$2" ]; do
        [ $SECONDS -lt $end ] || fail "the status is $status, not $2"
        sleep 0.2
    done
}

# What `aws configure` writes.
make_credentials() {
    mkdir -p ~/.aws
    printf '[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = not-a-secret\n' >~/.aws/credentials
}
