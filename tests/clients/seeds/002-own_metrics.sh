curl -s 'http://<host>:8000/pools/embed-video/v1/metrics'
