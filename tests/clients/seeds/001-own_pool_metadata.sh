curl -s 'http://0.0.0.0:8000/pools/predict/v1/metadata'
