curl -s "http://<host>:8000/docs"
