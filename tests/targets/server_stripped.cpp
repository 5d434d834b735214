// A server in C++, built without frame pointers and stripped: no name in it but those of the libraries.
// Its sessions are released, what they put into the history is not.
#include "target.h"

#include <memory>
#include <string>
#include <vector>

namespace {

struct Session {
    std::string user;
    std::vector<char> input;
};

std::vector<char *> history;

SITE void remember(std::size_t size)
{
    history.push_back(new char[size]);
}

SITE void handle(int request)
{
    auto session = std::make_unique<Session>();
    session->user = std::string(60, static_cast<char>('a' + request % 26));
    session->input.resize(300);
    remember(160);
}

} // namespace

int main()
{
    history.reserve(1000);
    target_ready();
    for (int request = 0; request < 1000; request++)
        handle(request);
    expect_outstanding("", 160000, 1000);
    target_truth(1);
    return 0;
}
