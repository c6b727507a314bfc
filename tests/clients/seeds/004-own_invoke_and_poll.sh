# The function takes longer than the second for which the first call waits: 202, then polling until the answer.
URL=https://api.nvcf.nvidia.com/v2/nvcf/pexec
STATUS=$(curl -s -D headers -o answer -w '%{http_code}' -X POST \
"$URL/functions/51000000-0000-4000-8000-000000000003" \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-H "NVCF-POLL-SECONDS: 1" \
-d '{"question": "What is 6 times 7?"}')
FIRST=$STATUS
REQUEST=$(sed -n 's/^nvcf-reqid: *\([^\r]*\).*/\1/Ip' headers)
POLLS=0
while [ "$STATUS" = 202 ] && [ $POLLS -lt 20 ]; do
    POLLS=$((POLLS + 1))
    STATUS=$(curl -s -o answer -w '%{http_code}' "$URL/status/$REQUEST" \
-H "Authorization: Bearer $API_KEY" \
-H "NVCF-POLL-SECONDS: 5")
done
echo "{\"first\": $FIRST, \"polls\": $POLLS, \"last\": $STATUS, \"answer\": $(cat answer)}"
