curl -s 'http://0.0.0.0:8000/v1/license'
