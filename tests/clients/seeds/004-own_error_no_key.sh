curl -q -s -D headers https://api.nvcf.nvidia.com/v2/nvcf/functions
