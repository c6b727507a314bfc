# An asset is created, uploaded by its presigned URL, used in a call and deleted.
ASSET=$(curl -s https://api.nvcf.nvidia.com/v2/nvcf/assets \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{"contentType": "image/jpeg", "description": "a street"}')
ID=$(jq -r .assetId <<<"$ASSET")
head -c 200000 /dev/urandom > street.jpg
curl -s -X PUT -T street.jpg "$(jq -r .uploadUrl <<<"$ASSET")" \
-H "Content-Type: image/jpeg" \
-H "x-amz-meta-nvcf-asset-description: a street"
curl -s https://api.nvcf.nvidia.com/v2/nvcf/pexec/functions/ec400000-0000-4000-8000-000000000001 \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-H "NVCF-INPUT-ASSET-REFERENCES: $ID" \
-d "{\"asset\": \"$ID\"}"
curl -s "https://api.nvcf.nvidia.com/v2/nvcf/assets/$ID" -H "Authorization: Bearer $API_KEY"
curl -s -o /dev/null -w '%{http_code}\n' -X DELETE "https://api.nvcf.nvidia.com/v2/nvcf/assets/$ID" \
-H "Authorization: Bearer $API_KEY"
