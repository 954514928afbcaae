-- read_encoding: an encoding that cannot hold every text. Returns: encoding. Empty when all is well.
SELECT current_setting('server_encoding') AS encoding WHERE current_setting('server_encoding') <> 'UTF8'
