module go_only

go 1.19
