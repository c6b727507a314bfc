# "Get All Datasets by Organization" has no example.
curl -s "https://api.ngc.nvidia.com/v1/cosmos/datasets?filter=by:org" \
-H "Authorization: Bearer ${COSMOS_KEY}" | jq --arg id "$DATASET_ID" '[.. | .id? | select(. == $id)]'
