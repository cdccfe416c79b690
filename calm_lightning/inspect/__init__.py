"""`calm inspect`: one HTML page about a run, for people who do not run TensorBoard.

`run_folder` reads what the run left, `opened` asks its model anew, `picture` draws the models and
their connections, `page` puts it together, `command` is the command.
"""
