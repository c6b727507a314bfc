# While the function works, a 202 tells how far it is.
URL=https://api.nvcf.nvidia.com/v2/nvcf/pexec
STATUS=$(curl -s -D headers -o answer -w '%{http_code}' -X POST \
"$URL/functions/96000000-0000-4000-8000-000000000004" \
-H "Authorization: Bearer $API_KEY" \
-H "NVCF-POLL-SECONDS: 1" \
-d '{}')
REQUEST=$(sed -n 's/^nvcf-reqid: *\([^\r]*\).*/\1/Ip' headers)
for POLL in {1..20}; do
    [ "$STATUS" = 202 ] || break
    STATUS=$(curl -s -D - -o answer -w '%{http_code}\n' "$URL/status/$REQUEST" \
-H "Authorization: Bearer $API_KEY" \
-H "NVCF-POLL-SECONDS: 1" | tee -a headers | tail -n 1)
done
grep -i '^nvcf-percent-complete' headers
echo "last: $STATUS"
